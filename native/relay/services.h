/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SAMEWIRE_SERVICES_H
#define SAMEWIRE_SERVICES_H

#include "relay.h"

struct wanted_backend {
	struct address address;
	bool draining;
};

/* What a service is to be. */
struct wanted {
	const char *id; /* shorter than ID_BYTES */
	bool udp;
	struct address listen; /* any port of it */
	uint32_t affinity_ms;
	unsigned count;
	struct wanted_backend backends[MAX_BACKENDS]; /* one that is named again counts once, as named first */
};

/* Makes or changes the service of that id. NULL: nothing has changed; *error says why. */
struct service *service_put(const struct wanted *wanted, const char **error);
void service_delete(const char *id); /* and its connections; nothing for an unknown id */
/* The service after this one, after NULL the first; NULL: there are no more. */
struct service *service_next(struct service *service);

#endif
