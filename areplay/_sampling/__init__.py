"""The way out: readers, samplers, slots, planned batches, tensors."""
