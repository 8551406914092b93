"""Series -> canonical volume."""
