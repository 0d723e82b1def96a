"""What a graph's precision amounts to, whoever converted it: ranges, weights, masks, casts."""
