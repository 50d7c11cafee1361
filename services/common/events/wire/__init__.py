"""How the nouns of `services.common.events` are read from Protobuf and written to it; cores do not import this."""
