"""Checkpoints: their files, reading and writing them, saving while the replay goes on."""
