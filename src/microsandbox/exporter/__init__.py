"""``msb-metrics``: what running sandboxes use, for monitoring systems.

registry + catalogue ──Collector──► Collection ──Pipeline──► stdout | OpenTelemetry
                                         └────── on each scrape ──► Prometheus
"""
