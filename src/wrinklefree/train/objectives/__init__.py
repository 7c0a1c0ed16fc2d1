"""What a training minimises: corruptions, terms, and the network between them."""
