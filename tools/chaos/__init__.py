"""Jobs on the lab that are disturbed: how faults are made, and what becomes of a run under them."""
