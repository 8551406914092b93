"""Rules that come with headct: diagnoses -> findings."""
