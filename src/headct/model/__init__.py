"""Views -> tokens -> embedding."""
