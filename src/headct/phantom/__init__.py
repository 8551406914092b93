"""Synthetic head CT with known truth: anatomy, findings, scanners, and archives of them."""
