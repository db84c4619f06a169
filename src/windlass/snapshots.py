INSTALLED="installed"; LOCAL="local"; BY_VALUE="value"
def home(name):
    return INSTALLED
