"""Pairing: from an invitation to two trust stores that know each other."""
