"""From records to answers: conditions, findings, summaries. Needs the vocabulary only, no runtime."""
