"""Compositionality and generalization: a sender describes objects, of which some combinations are never seen."""
