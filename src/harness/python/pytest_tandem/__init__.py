"""The pytest plugin of the wheel."""
