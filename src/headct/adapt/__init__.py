"""Bundle + labels -> task model."""
