"""What a model's symmetry looks like: of its filters, of its features, of its predictions."""
