// SPDX-License-Identifier: Apache-2.0
/*
 * computenetwork.c - the exports of computenetwork.dll. docs/api.md says which request each one is.
 *
 * Signatures follow Microsoft's public header computenetwork.h; GUIDs come by reference, text as UTF-16.
 */
#include <stdio.h>
#include <stdlib.h>

#include "call.h"
#include "handles.h"
#include "http.h"

#define PATH_BYTES 160

static int no_guid(const GUID *id) { return !id; }

static HRESULT enumerate(const char *kind, PCWSTR query, PWSTR *result, PWSTR *error)
{
	char path[PATH_BYTES];

	if (!result)
		return refuse(HR_POINTER, "nowhere to put the list", error);
	snprintf(path, sizeof(path), "/v2/%s/enumerate", kind);
	return call("POST", path, query, result, error, NULL);
}

static HRESULT create(const char *kind, enum kind type, const char *network, const GUID *id, PCWSTR settings,
		      void **handle, PWSTR *error)
{
	char path[PATH_BYTES], text[GUID_TEXT], made[GUID_TEXT];
	HRESULT code;

	if (handle)
		*handle = NULL;
	if (no_guid(id))
		return refuse(HR_POINTER, "the ID is a null pointer", error);
	guid_text(id, text);
	snprintf(path, sizeof(path), "/v2/%s?id=%s%s%s", kind, text, network ? "&network=" : "",
		 network ? network : "");
	code = call("POST", path, settings, NULL, error, made);
	if (code != S_OK || !handle)
		return code;
	*handle = handle_open(type, made);
	return *handle ? S_OK : refuse(HR_OUTOFMEMORY, "no memory for a handle", error);
}

static HRESULT open_object(const char *kind, enum kind type, const GUID *id, void **handle, PWSTR *error)
{
	char path[PATH_BYTES], text[GUID_TEXT];
	HRESULT code;

	if (no_guid(id) || !handle)
		return refuse(HR_POINTER, "the ID or the handle is a null pointer", error);
	*handle = NULL;
	guid_text(id, text);
	snprintf(path, sizeof(path), "/v2/%s/%s/open", kind, text);
	code = call("POST", path, NULL, NULL, error, NULL);
	if (code != S_OK)
		return code;
	*handle = handle_open(type, text);
	return *handle ? S_OK : refuse(HR_OUTOFMEMORY, "no memory for a handle", error);
}

/* POST to /v2/<kind>/<id of the handle><verb>. */
static HRESULT of_handle(const char *kind, enum kind type, void *handle, const char *verb, PCWSTR text, PWSTR *result,
			 PWSTR *error)
{
	char path[PATH_BYTES], id[GUID_TEXT];

	if (result)
		*result = NULL;
	if (handle_id(handle, type, id))
		return refuse(HR_HANDLE, "the handle is not open, or of another kind of object", error);
	snprintf(path, sizeof(path), "/v2/%s/%s%s", kind, id, verb);
	return call("POST", path, text, result, error, NULL);
}

static HRESULT delete_object(const char *kind, const GUID *id, PWSTR *error)
{
	char path[PATH_BYTES], text[GUID_TEXT];

	if (no_guid(id))
		return refuse(HR_POINTER, "the ID is a null pointer", error);
	guid_text(id, text);
	snprintf(path, sizeof(path), "/v2/%s/%s", kind, text);
	return call("DELETE", path, NULL, NULL, error, NULL);
}

/* What all kinds have; endpoints are created within a network. */
#define COMMON(One, Many, kind, type)                                                                              \
	EXPORT HRESULT WINAPI HcnEnumerate##Many(PCWSTR query, PWSTR *result, PWSTR *error)                        \
	{                                                                                                          \
		return enumerate(kind, query, result, error);                                                      \
	}                                                                                                          \
	EXPORT HRESULT WINAPI HcnOpen##One(const GUID *id, void **handle, PWSTR *error)                            \
	{                                                                                                          \
		return open_object(kind, type, id, handle, error);                                                 \
	}                                                                                                          \
	EXPORT HRESULT WINAPI HcnModify##One(void *handle, PCWSTR settings, PWSTR *error)                          \
	{                                                                                                          \
		return of_handle(kind, type, handle, "", settings, NULL, error);                                   \
	}                                                                                                          \
	EXPORT HRESULT WINAPI HcnQuery##One##Properties(void *handle, PCWSTR query, PWSTR *result, PWSTR *error)   \
	{                                                                                                          \
		return of_handle(kind, type, handle, "/query", query, result, error);                              \
	}                                                                                                          \
	EXPORT HRESULT WINAPI HcnDelete##One(const GUID *id, PWSTR *error)                                         \
	{                                                                                                          \
		return delete_object(kind, id, error);                                                             \
	}                                                                                                          \
	EXPORT HRESULT WINAPI HcnClose##One(void *handle)                                                          \
	{                                                                                                          \
		return handle_close(handle, type) ? HR_HANDLE : S_OK;                                              \
	}

#define CREATED(One, kind, type)                                                                                   \
	EXPORT HRESULT WINAPI HcnCreate##One(const GUID *id, PCWSTR settings, void **handle, PWSTR *error)         \
	{                                                                                                          \
		return create(kind, type, NULL, id, settings, handle, error);                                      \
	}

COMMON(Network, Networks, "networks", KIND_NETWORK)
CREATED(Network, "networks", KIND_NETWORK)
COMMON(Namespace, Namespaces, "namespaces", KIND_NAMESPACE)
CREATED(Namespace, "namespaces", KIND_NAMESPACE)
COMMON(LoadBalancer, LoadBalancers, "loadbalancers", KIND_LOAD_BALANCER)
CREATED(LoadBalancer, "loadbalancers", KIND_LOAD_BALANCER)
COMMON(SdnRoute, SdnRoutes, "routes", KIND_ROUTE)
CREATED(SdnRoute, "routes", KIND_ROUTE)
COMMON(Endpoint, Endpoints, "endpoints", KIND_ENDPOINT)

EXPORT HRESULT WINAPI HcnCreateEndpoint(void *network, const GUID *id, PCWSTR settings, void **handle, PWSTR *error)
{
	char text[GUID_TEXT];

	if (error)
		*error = NULL;
	if (handle_id(network, KIND_NETWORK, text))
		return refuse(HR_HANDLE, "the network's handle is not open", error);
	return create("endpoints", KIND_ENDPOINT, text, id, settings, handle, error);
}

EXPORT HRESULT WINAPI HcnQueryEndpointStats(void *handle, PCWSTR query, PWSTR *result, PWSTR *error)
{
	return of_handle("endpoints", KIND_ENDPOINT, handle, "/stats", query, result, error);
}

EXPORT HRESULT WINAPI HcnQueryEndpointAddresses(void *handle, PCWSTR query, PWSTR *result, PWSTR *error)
{
	return of_handle("endpoints", KIND_ENDPOINT, handle, "/addresses", query, result, error);
}

EXPORT HRESULT WINAPI HcnOpenService(void **handle, PWSTR *error)
{
	if (error)
		*error = NULL;
	if (!handle)
		return refuse(HR_POINTER, "the handle is a null pointer", error);
	*handle = handle_open(KIND_SERVICE, "");
	return *handle ? S_OK : refuse(HR_OUTOFMEMORY, "no memory for a handle", error);
}

EXPORT HRESULT WINAPI HcnCloseService(void *handle)
{
	return handle_close(handle, KIND_SERVICE) ? HR_HANDLE : S_OK;
}

/* ---- notifications ---------------------------------------------------------------------------------------------- */

typedef void(CALLBACK *notification_t)(DWORD type, void *context, HRESULT status, PCWSTR data);

#define SERVICE_DISCONNECT 0x01000000u

struct listener {
	struct listener *next; /* of those that are registered */
	notification_t callback;
	void *context;
	struct lines lines;
	thread_t thread;
	lock_t lock;
	int ended; /* no callback any more */
	int owns_itself; /* the callback has unregistered itself: the thread cleans up */
	int disconnected; /* has been told */
	thread_id_t id;
};

static lock_t listeners_lock = LOCK_INITIAL;
static struct listener *listeners;

/* Takes a listener out of the registered ones; NULL = it is none of them. */
static struct listener *unregister(void *handle)
{
	struct listener **place, *found;

	lock(&listeners_lock);
	for (place = &listeners; *place && *place != handle; place = &(*place)->next)
		;
	found = *place;
	if (found)
		*place = found->next;
	unlock(&listeners_lock);
	return found;
}

static void notify(struct listener *listener, const char *line)
{
	struct slice object = { line, 0 }, type, status, data;
	uint32_t number, code = 0;
	WCHAR *text;

	while (line[object.size])
		object.size++;
	if (json_member(object, "Type", &type) || json_u32(type, &number) || json_member(object, "Data", &data))
		return;
	if (!json_member(object, "Status", &status))
		json_u32(status, &code);
	text = utf16_from_utf8(data.at, data.size, malloc);
	if (text) {
		listener->disconnected |= number == SERVICE_DISCONNECT;
		listener->callback(number, listener->context, RESULT(code), text);
	}
	free(text);
}

static void release(struct listener *listener)
{
	socket_close(listener->lines.socket);
	lines_free(&listener->lines);
	free(listener);
}

static int has_ended(struct listener *listener)
{
	int ended;

	lock(&listener->lock);
	ended = listener->ended;
	unlock(&listener->lock);
	return ended;
}

static void listen_for(void *context)
{
	struct listener *listener = context;
	char *line;

	lock(&listener->lock); /* until the registration is complete */
	listener->id = thread_self();
	unlock(&listener->lock);
	while (!has_ended(listener) && (line = lines_next(&listener->lines)))
		if (*line && !has_ended(listener))
			notify(listener, line);
	/* A daemon that was killed has not said so itself. */
	if (!listener->disconnected && !has_ended(listener))
		notify(listener, "{\"Type\":16777216,\"Data\":{\"ID\":\"\",\"Flags\":0,\"Data\":{}}}");
	if (listener->owns_itself)
		release(listener);
}

EXPORT HRESULT WINAPI HcnRegisterServiceCallback(notification_t callback, void *context, void **handle)
{
	struct listener *listener;
	HRESULT refused;

	if (!callback || !handle)
		return HR_POINTER;
	listener = calloc(1, sizeof(*listener));
	if (!listener)
		return HR_OUTOFMEMORY;
	*listener = (struct listener){ .callback = callback, .context = context, .lock = LOCK_INITIAL };
	listener->lines.socket = http_stream("/v2/notifications");
	/* The empty line at the beginning: from now on nothing is missed. */
	if (listener->lines.socket == NO_SOCKET) {
		free(listener);
		return HR_NO_SERVER;
	}
	if (!lines_next(&listener->lines)) {
		refused = listener->lines.status == 403 ? HR_ACCESSDENIED : HR_NO_SERVER;
		release(listener);
		return refused;
	}
	lock(&listener->lock);
	if (thread_start(&listener->thread, listen_for, listener)) {
		unlock(&listener->lock);
		release(listener);
		return HR_OUTOFMEMORY;
	}
	*handle = listener;
	lock(&listeners_lock);
	listener->next = listeners;
	listeners = listener;
	unlock(&listeners_lock);
	unlock(&listener->lock);
	return S_OK;
}

/* No callback comes after this has returned, unless it was called from a callback. */
EXPORT HRESULT WINAPI HcnUnregisterServiceCallback(void *handle)
{
	struct listener *listener = unregister(handle);
	int own;

	if (!listener)
		return HR_HANDLE;
	lock(&listener->lock);
	listener->ended = 1;
	own = listener->owns_itself = thread_same(thread_self(), listener->id);
	unlock(&listener->lock);
	if (own) {
		thread_forget(listener->thread);
		return S_OK;
	}
	socket_stop(listener->lines.socket);
	thread_join(listener->thread);
	release(listener);
	return S_OK;
}

/* ---- the guest network service: nothing of it is built --------------------------------------------------------- */

#define ABSENT(name)                          \
	EXPORT HRESULT WINAPI name(void)      \
	{                                     \
		return HR_NOTIMPL;            \
	}

ABSENT(HcnRegisterGuestNetworkServiceCallback)
ABSENT(HcnUnregisterGuestNetworkServiceCallback)
ABSENT(HcnEnumerateGuestNetworkServices)
ABSENT(HcnCreateGuestNetworkService)
ABSENT(HcnOpenGuestNetworkService)
ABSENT(HcnQueryGuestNetworkServiceProperties)
ABSENT(HcnCloseGuestNetworkService)
ABSENT(HcnModifyGuestNetworkService)
ABSENT(HcnDeleteGuestNetworkService)
ABSENT(HcnReserveGuestNetworkServicePort)
ABSENT(HcnReserveGuestNetworkServicePortRange)
ABSENT(HcnReleaseGuestNetworkServicePortReservationHandle)
ABSENT(HcnEnumerateGuestNetworkPortReservations)
ABSENT(HcnFreeGuestNetworkPortReservations)
