class SamaChat:
    pass
