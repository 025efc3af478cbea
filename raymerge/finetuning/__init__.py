"""Fine-tuning experts from raw datasets: the recipe, the files, one expert, and several at once."""
