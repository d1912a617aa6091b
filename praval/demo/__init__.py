"""The first job: a team of agents reads a folder and reports how its files depend on each other.

``praval demo [PATH]`` runs it. The crafts (:mod:`.sources`, :mod:`.reading`, :mod:`.links`,
:mod:`.evidence`, :mod:`.summaries`, :mod:`.report`) are plain functions that know nothing of
agents; :mod:`.team` puts them behind spores, :mod:`.run` puts the team into a Reef.
"""
