package webhook

// DocumentedTypes are the types of event that BuzzBip documents (developer
// documentation, "Webhooks", updated 2026-06-01).
var DocumentedTypes = []string{
	"contact.created",
	"contact.updated",
	"conversation.opened",
	"conversation.resolved",
	"message.failed",
	"message.received",
	"message.sent",
}
