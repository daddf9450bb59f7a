"""What a condensed set is used for: tensors and networks in, numbers out."""
