"""Speed, measured against the peers that a user would otherwise take: the same work, in turns, in one run."""
