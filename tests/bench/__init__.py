"""What scripts/bench runs: wsgate beside its peers on the same core, in turn, as ratios of server CPU."""
