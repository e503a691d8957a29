"""Answers judged by a model: what is asked, who is asked, how a reply is read, and where verdicts are kept."""
