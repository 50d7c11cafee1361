"""Features that a team declares: from entries of the feature spec to one plan of vectorised operators. numpy only."""
