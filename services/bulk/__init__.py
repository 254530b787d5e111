"""``vits synthesize``: datasets of texts, of any length, spoken into a store."""
