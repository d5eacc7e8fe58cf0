package webhook

// DocumentedTypes are the event types that BuzzBip documents, sorted (developer
// documentation, "Webhooks", updated 2026-06-01). Events of other types are
// accepted too.
var DocumentedTypes = []string{
	"contact.created",
	"contact.updated",
	"conversation.opened",
	"conversation.resolved",
	"message.failed",
	"message.received",
	"message.sent",
}
