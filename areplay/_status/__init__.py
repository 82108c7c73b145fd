"""What a replay tells of itself, and to programs outside."""
