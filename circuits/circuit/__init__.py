"""Circuits: found, evaluated, applied to other prompts."""
