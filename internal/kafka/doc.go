// Package kafka joins the settings to the Kafka client: how to connect, which
// topics there are and what they must be like, and how far a consumer group is
// behind.
package kafka
