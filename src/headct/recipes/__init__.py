"""Recipes that come with headct; `headct pretrain NAME` finds them here."""
