"""Generation: how data become noise, and how noise becomes data again."""
