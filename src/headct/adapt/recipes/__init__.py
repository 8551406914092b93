"""Recipes of `headct finetune`: from a bundle, and from scratch with their own tuning."""
