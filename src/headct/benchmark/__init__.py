"""Encoders x methods x labels x seeds: a matrix of tasks, evaluated together."""
