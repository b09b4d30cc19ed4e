"""`make gpu-check`: what a GPU does with this code: its numbers, its speed, each lever's share."""
