"""What runs need of the process and the machine, whatever they compute."""
