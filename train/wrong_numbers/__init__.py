"""What a run does where numbers go wrong: steps are computed again, or left out for good."""
