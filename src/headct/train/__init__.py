"""Objective -> checkpoint."""
