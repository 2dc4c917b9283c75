"""Sentiment by a chat model that was not trained on the corpus, from the transcript alone: a bar beside the baselines.

`ask` sends transcripts to an endpoint and keeps the raw answers; `evaluate` reads them, and opens no connection.
"""
