"""Compiled artifacts on the command line: builds them in one process, verifies them in a fresh one, lists and prunes them."""
