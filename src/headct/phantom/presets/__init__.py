"""Phantom presets: how hard the synthetic heads are."""
