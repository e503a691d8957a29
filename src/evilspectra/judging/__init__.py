"""Judging: a judge replies to prompts about answers, and each reply becomes a recorded verdict."""
