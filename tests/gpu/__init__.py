"""What a GPU would say, asked of one that is not there."""
