"""Operators, one file each: a frozen config and a module at fixed sizes."""
