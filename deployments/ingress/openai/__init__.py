"""/v1: the service as clients of OpenAI's API know it.

Whatever is asked here is done by the same parts as elsewhere: a conversation is a session, a response is a turn. What
of OpenAI's API is taken, ignored and refused stands in `docs/openai.md`.
"""
