"""A recipe from data: what is in it, what looks wrong, and the method that follows."""
