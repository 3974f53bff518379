"""MQTT in and out: topics of brokers become readings, and readings become messages."""
