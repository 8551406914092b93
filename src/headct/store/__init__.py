"""Many canonical volumes -> fast, checked reading."""
