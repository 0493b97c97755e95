"""What a file holds, for people and other formats: values, reports, comparisons, checks, the way back."""
