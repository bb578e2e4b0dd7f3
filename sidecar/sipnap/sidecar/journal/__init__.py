"""Where acceptances are kept. `base.Journal` is the interface; each other module is one back end."""
