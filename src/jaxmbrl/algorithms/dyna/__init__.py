"""Policy learning on imagined transitions: MBPO."""
